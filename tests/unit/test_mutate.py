"""The mutations of scripts/mutate still fit the code; that they are caught is shown by running it."""

import lablib
import mutaterun
import pytest


@pytest.mark.parametrize("mutation", mutaterun.MUTATIONS, ids=lambda mutation: mutation.what.replace(" ", "-"))
def test_a_mutations_line_stands_in_its_file_once(mutation: mutaterun.Mutation) -> None:
    text = (lablib.REPO / mutation.file).read_text()
    assert mutaterun.apply(text, mutation) != text


def test_every_statement_has_a_mutation() -> None:
    assert {number for mutation in mutaterun.MUTATIONS for number in mutation.statements} == set(range(1, 40))
