"""Load pretrained parts: a configuration becomes networks on their device."""
