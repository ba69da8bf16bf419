"""Pure decoders of wire formats, on which the dialects build."""
