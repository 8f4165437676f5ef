from pipeline.corpus.tables import ErrorList


def test_rows_with_the_same_error_are_one_line_that_names_five_and_counts_the_rest() -> None:
    errors = ErrorList()
    for number in range(2, 9):
        errors.add("x.csv", "bad", number)
    for number in range(5):
        errors.add("y.csv", "bad", number)
    errors.add("z.csv", "bad", 7, "'posit'")
    assert errors.lines() == [
        "x.csv, rows 2, 3, 4, 5, 6 and 2 more: bad",
        "y.csv, rows 0, 1, 2, 3, 4: bad",
        "z.csv, row 7 ('posit'): bad",
    ]
