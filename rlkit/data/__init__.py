"""Rows, the prompts made of them, and their order.

rows.py    what a table of rows is                     json_rows.py, arrow_rows.py   the two ways a table lies on disk
sources.py from the words of a recipe to rows          columns.py    from a row to a prompt and its reference answer
completions.py  from a row to a prompt with completions   offline_rows.py  the same with tokens: pairs, rated, demonstrations
cursor.py  the order, a pure function of the seed      renderer.py   the one owner of tokenizer and chat template
stream.py  prompts with tokens, in order, resumable    availability.py  what exists near a wrong path, whether the hub answers
"""
