"""Does the choice of heads matter: the experiment behind docs/evidence.md."""
