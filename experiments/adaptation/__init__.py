"""What adapting to a link is worth: policies compared on the same requests, within the same bounds of distortion.

Used by `abkt adaptation` alone.
"""
