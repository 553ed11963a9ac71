"""Real faults on real training: of disks, of processes, of Ray's head."""
