"""A recipe to start from: what runs the network where no data tell, and the text that is written."""
