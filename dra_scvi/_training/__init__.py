"""How a module is trained: plan, checkpoints, identity, interrupts, divergence, processes."""
