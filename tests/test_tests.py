"""No test can pass without having checked anything: its assertions do not all stand where they may never be reached."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

FOLDER = Path(__file__).parent
CHECKING_BLOCKS = {"raises", "warns"}
CHECKING_CALLS = ("assert", "check", "expect", "require", "failure")
# Their loops go over what the code under test returns, in step (`strict=True`) with an input that the test made.
READ_BY_HAND = {
    "test_the_blocks_of_a_page_run_in_order",
    "test_command_lines_of_a_block_parse",
    "test_large_batches_of_queries_find_what_single_queries_find",
    "test_stored_states_are_those_of_the_encoder_within_half_precision",
    "test_splitting_heads_equals_torchs",
    "test_spans_equal_the_definition_slot_by_slot",
    "test_what_is_kept_serves_any_prompt_that_goes_on_from_it_in_any_batch",
    "test_the_passages_of_a_batch_change_no_state",
    "test_the_same_batch_gives_the_same_bits",
    "test_a_passage_gives_one_pooled_state_for_every_chunk_of_its_tokens",
    "test_states_stored_at_a_ratio_serve_any_multiple_of_it",
    "test_states_come_in_the_dtype_that_is_asked_for",
    "test_equal_documents_tie_and_keep_their_order",
    "test_rope_tables_equal_transformers",
    "test_compiled_norms_rotations_and_gates_equal_torchs_and_so_do_their_gradients",
}


def name_of(node: ast.AST) -> str:
    """The last name of what is called: `close` of `torch.testing.close(…)`."""
    call = node.func if isinstance(node, ast.Call) else node
    return getattr(call, "attr", getattr(call, "id", ""))


def is_check(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    fails_by_itself = any(keyword.arg == "check" for keyword in node.keywords)  # subprocess.run(…, check=True)
    return fails_by_itself or name_of(node) in CHECKING_BLOCKS or name_of(node).startswith(CHECKING_CALLS)


def surely_has_items(node: ast.expr | None, local: Mapping[str, ast.expr]) -> bool:
    """A loop over this runs at least once, as the source tells. `local`: what names of the test are bound to."""
    match node:
        case ast.Tuple() | ast.List() | ast.Set():
            return bool(node.elts)
        case ast.Dict():
            return bool(node.keys)
        case ast.Constant():
            return bool(node.value)
        case ast.Name():
            return node.id.isupper() or surely_has_items(local.get(node.id), {})  # upper case: a constant of the tests
        case ast.Call() if name_of(node) == "range":
            return all(isinstance(argument, ast.Constant) for argument in node.args)
        case ast.Call() if name_of(node) == "zip":
            strict = any(keyword.arg == "strict" for keyword in node.keywords)
            return strict and any(surely_has_items(argument, local) for argument in node.args)
        case ast.Call() if name_of(node) in ("enumerate", "product", "sorted", "reversed", "list"):
            return surely_has_items(node.args[0], local)
        case ast.Subscript():
            return surely_has_items(node.value, local)
        case ast.Call(func=ast.Attribute(attr="items" | "values")):
            return surely_has_items(node.func.value, local)
    return False


def bound_in(test: ast.AST) -> dict[str, ast.expr]:
    """What the names of a test were bound to, one by one and last."""
    bound: dict[str, ast.expr] = {}
    for node in ast.walk(test):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                bound[name] = value
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                bound |= {
                    name.id: value for name, value in zip(names, values, strict=False) if isinstance(name, ast.Name)
                }
    return bound


def reached(body: list[ast.stmt], local: Mapping[str, ast.expr]) -> Iterator[ast.stmt]:
    """The statements that run whenever the test runs to its end."""
    for statement in body:
        match statement:
            case ast.For() | ast.AsyncFor():
                if surely_has_items(statement.iter, local):
                    yield from reached(statement.body, local)
            case ast.If() | ast.While():
                pass
            case ast.With() | ast.AsyncWith():
                yield from (ast.Expr(item.context_expr) for item in statement.items)
                yield from reached(statement.body, local)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from reached(statement.body, local)
            case _:
                yield statement


def may_check_nothing(test: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return not any(is_check(node) for statement in reached(test.body, bound_in(test)) for node in ast.walk(statement))


def functions_of(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


def test_what_may_check_nothing_is_recognised() -> None:
    def verdict(body: str) -> bool:
        [test] = ast.parse(f"def test_it():\n    {body}").body
        assert isinstance(test, ast.FunctionDef)
        return may_check_nothing(test)

    assert verdict("for x in found(): assert x")
    assert verdict("if found(): assert True")
    assert verdict("run()")
    assert not verdict("for x in (1, 2): assert x")
    assert not verdict("with pytest.raises(ValueError): run()")
    assert not verdict("assert found()")


def test_no_test_checks_only_where_it_may_never_come() -> None:
    doubtful = {
        test.name for file in FOLDER.rglob("test_*.py") for test in functions_of(file) if may_check_nothing(test)
    }
    assert doubtful == READ_BY_HAND
