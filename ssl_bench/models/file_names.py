"""Names of files that hold weights; nothing is imported, so that asking for them takes no torch."""

ENCODER, ENCODER_WEIGHTS = "encoder.json", "encoder.safetensors"
METHOD_WEIGHTS = "method.safetensors"
