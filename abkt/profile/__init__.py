"""Measure a machine once; let the model read it. `abkt.profile.schema` needs no torch."""
