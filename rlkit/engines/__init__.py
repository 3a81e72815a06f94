"""The machines that hold weights: samplers and learners, and who has the memory when. One heavy library a file."""
