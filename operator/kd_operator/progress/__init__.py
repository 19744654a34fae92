"""Live progress: the HTTP endpoint that pods post to, who may, and what is put together from it. Never needed for correctness."""
