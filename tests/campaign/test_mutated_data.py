"""Two thousand mutated data files, other ones each time: rows or a sentence, never a bare error of a library."""

from tests.test_faults_data import answer, mutated

from hypothesis import given, settings


@settings(max_examples=2000, database=None, deadline=None)
@given(case=mutated())
def test_two_thousand_mutated_files_give_rows_or_a_sentence(case, tmp_path_factory, tokenizer):
    answer(case, tmp_path_factory.getbasetemp(), tokenizer)
