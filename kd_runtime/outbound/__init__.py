"""Connections to addresses that the author of a job wrote: where they may lead, and clients that hold to it."""
