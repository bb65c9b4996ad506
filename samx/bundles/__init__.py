"""What a kit for another machine is made of, and the program in it."""
