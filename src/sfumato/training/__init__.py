"""Training: objectives, the law of times, the loop, the optimiser, averages, checkpoints, and the model they make.

``train`` runs a recipe; :func:`sfumato.training.loop.train_steps` is the loop itself, a generator.
"""
