"""What packages of all floors share: one file per subject, each of which knows nothing of what is above it."""
