"""Operations of a transfer on bytes on a GPU: digests, and copies to and from host memory. Used by protocol and transports."""
