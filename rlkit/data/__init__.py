"""Rows, the prompts made of them, and their order.

rows.py    what a table of rows is                     json_rows.py, arrow_rows.py   the two ways a table lies on disk
sources.py from the words of a recipe to rows          columns.py    from a row to a prompt and its reference answer
cursor.py  the order, a pure function of the seed      renderer.py   the one owner of tokenizer and chat template
stream.py  prompts with tokens, in order, resumable      places.py    what lies beside a wrong path, whether the hub answers
"""
