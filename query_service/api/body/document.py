"""A document of a request: a record of a corpus, with the names that other services have for its fields."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kalm_cache.passage import as_doc_id, first_present
from query_service.api.body.limits import ItemId, Text


class Document(BaseModel):
    """A record as a corpus has it: the fields that the index's `passage_template` names make its passage.

    Where the index holds this very passage under this `doc_id`, its stored states are used. `_id`, `docid` and
    `contents` are known here as they are in a corpus.
    """

    model_config = ConfigDict(extra="allow")
    text: Annotated[Text | None, Field(description="left out only where other fields make the passage")] = None
    title: Annotated[Text | None, Field(description="in front of the text, unless the index's template differs")] = None
    doc_id: ItemId | None = None
    id: Annotated[ItemId | None, Field(description="another name of `doc_id`, as other services have it")] = None

    @model_validator(mode="before")
    @classmethod
    def _as_in_a_corpus(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        renamed = {name: value for name, value in fields.items() if value is not None}
        if "doc_id" not in renamed and (other := first_present(("_id", "docid"), renamed)) is not None:
            renamed["doc_id"] = renamed.pop(other)
        return renamed

    @property
    def stored_id(self) -> str | None:
        """The id that the index may hold; an empty string is the client's alone."""
        given = self.id if self.doc_id is None else self.doc_id
        return None if given is None else as_doc_id(given, "the id") or None

    @property
    def record(self) -> dict[str, Any]:
        """The fields that may be part of the passage."""
        named = {"title": self.title, "text": self.text}
        return {**(self.model_extra or {}), **{name: value for name, value in named.items() if value is not None}}


Documents = list[Text | Document]
