"""PV Calls v1 and its extensions as bytes ⇄ types; nothing here reads or writes a descriptor.

Rules
- What a peer sent is copied by the caller, decoded once into a frozen type, and never read again.
- Decoders raise WireError and nothing else, whatever the bytes are.
- Little-endian throughout: the format is native on x86, and guests and backend agree on it.

The format is docs/reference/pvcalls.md, the extensions docs/reference/extensions.md.
"""
