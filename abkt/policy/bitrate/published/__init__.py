"""Bitrate policies that others have published, each from its paper or code, as its file says. `abkt.policy.bitrate` exports them."""
