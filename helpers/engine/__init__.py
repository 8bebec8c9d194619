"""What makes training fast and restartable; ``helpers.training`` enters here, notebooks 07 and 09 use launch and ladder."""
