"""Vision: methods on image models (`assay.model.images`)."""
