"""Several domains on one frozen backbone: a graft each, which of them an image belongs to, and grafts made one."""
