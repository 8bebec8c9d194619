"""Two thousand mutated data files, other ones each time: rows or a sentence, never a bare error of a library."""

from tests.sources.test_faulty_files import check_answer, mutated

from hypothesis import given, settings


@settings(max_examples=2000, database=None, deadline=None)
@given(case=mutated())
def test_two_thousand_mutated_files_give_rows_or_a_sentence(case, tmp_path_factory, tokenizer):
    check_answer(case, tmp_path_factory.getbasetemp(), tokenizer)
