"""What the machine is and how it fares while something is measured on it: one adapter for each kind of device."""
