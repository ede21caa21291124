"""From sounds to patches."""
