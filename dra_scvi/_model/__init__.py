"""The model class: scvi-tools' interface around module, data, training and folder."""
