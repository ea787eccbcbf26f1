"""The probe: a small Llama-shaped model that uses its context, trained here so that every run has real KV."""
