"""What a transfer does with bytes on a GPU: digest them there, and copy them to or from host memory. Used by protocol and transports."""
