"""What the fine-tuning notebooks share: settings, data, models, training, evaluation, records, figures, runner."""
