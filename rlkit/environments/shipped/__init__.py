"""Tools and environments that come with rlkit, each a file that a recipe names without its path: calculator, python, search, guess_number,
wordle. They stand here and not at the top level, which holds what users add to (rewards/, recipes/): each is an example of its shape to
copy into a file of one's own."""
