"""What adapting to a link is worth: the same requests under policies that must keep the same bounds of distortion."""
