"""Pure losses: arrays in, arrays out, in nats per example; no model, no optimizer."""
