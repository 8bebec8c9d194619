"""What makes training fast and restartable: the trainer, its loss and attention, checkpoints, several devices.

``helpers.training`` enters here; the notebooks 07 and 09 use ``launch`` and the ladder.
"""
