"""What an image set is (`sources`) and which images a step sees (`pipeline`)."""
