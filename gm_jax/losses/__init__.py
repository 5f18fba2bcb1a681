"""Pure losses: arrays in, arrays out; no model, no optimizer.

Likelihoods and bounds are in nats per example; adversarial losses, `free_bits` and
`contrastive_divergence` are averaged over the batch.

They are the project's public library, including those that nothing in it calls:

    likelihoods      log-probabilities, samples, and samples from given noise (quantile)
      bernoulli_log_prob, _sample, _quantile         bits
      categorical_log_prob, _sample, _quantile       integers in [0, V)
      gaussian_log_prob, _sample                     real values
      gaussian_log_prob_per_unit                     the same for each value
      logistic_log_prob, _sample                     the same, with heavier tails
      logistic_mixture_log_prob, _sample, _quantile  pixels of ordered values
      logistic_mixture_temper        the same mixture at another temperature
      bits_per_dim                   bits per dimension from nats per image
    elbo             variational bounds
      elbo                           evidence lower bound, with a weight for the KL term
      iwae_bound                     importance-weighted bound of several samples
      gaussian_kl                    KL from a diagonal Gaussian to N(0, I)
      gaussian_kl_per_unit           the same for each latent unit
      gaussian_kl_between            KL between two diagonal Gaussians
      free_bits                      KL term with a minimum for each unit
    adversarial      losses of two players, each to be minimised
      discriminator_loss             cross-entropy of real and generated samples
      generator_loss_minimax         generator's part of the minimax game
      generator_loss_non_saturating  the same fixed point with a gradient from the start
      critic_loss                    minus the estimated Wasserstein distance
      critic_generator_loss          generator's loss against a critic
      hinge_loss                     critic's loss with a margin
      gradient_penalty               squared distance of a critic's gradient norm from 1
      r1_penalty                     squared gradient norm of the discriminator at data
    reconstruction
      squared_error                  L2 loss of autoencoders
    dequantization   continuous densities for integer pixels
      uniform                        integers plus uniform noise, scaled to [0, 1]
      variational                    the same with noise from a learned distribution
      log_prob                       lower bound on log P(x) from a log-density
    energy           restricted Boltzmann machines
      free_energy                    minus log p(v), but for log Z
      log_partition_exact            log Z of a machine with few units on one side
      contrastive_divergence         loss whose gradient needs samples of the model
      centered, center_gradient      gradient of the centered parametrisation
      hidden_logits, visible_logits  log-odds of one layer given the other
"""

from gm_jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, (
    'adversarial',
    'dequantization',
    'elbo',
    'energy',
    'likelihoods',
    'reconstruction',
))
