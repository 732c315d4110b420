"""Description of the service for OpenAPI."""

from __future__ import annotations

from typing import Any

from trakstore.methods.by_name import METHODS
from trakstore.serve.limits import Limits

_ID = {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 1000}]}
_JSON = "application/json"


def openapi(version: str, limits: Limits) -> dict[str, Any]:
    """Describe every address with its requests and answers, as OpenAPI 3.1."""
    error = _reply("What is wrong", _ref("Error"))
    codes = ("400", "401", "403", "404", "408", "413", "415", "422", "431", "503")
    answer = _reply("The samples that helped and harmed", _ref("Answer"))
    answer["content"]["application/x-ndjson"] = {
        "schema": {"description": "An Answer a line, the last one with a share of 1."}
    }
    body = {"required": True, "content": {_JSON: {"schema": _ref("Question")}}}
    query = {
        "summary": "List the train samples with the largest and smallest scores for a sample",
        "requestBody": body,
        "responses": {"200": answer, **dict.fromkeys(codes, error)},
        "security": [{}, {"token": []}],
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "trakstore serve", "version": version},
        "paths": {
            "/query": {"post": query},
            "/store": {"get": _plain("What can be asked", _JSON)},
            "/health": {"get": _plain("Whether it works on the store as it is", _JSON)},
            "/metrics": {"get": _plain("Counters for Prometheus", "text/plain")},
            "/openapi.json": {"get": _plain("This description", _JSON)},
            "/": {"get": _plain("A page to ask from", "text/html")},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Question": _question(limits),
                "Answer": _answer(),
                "Entry": _entry(),
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {"error": {"type": "string"}},
                },
            },
        },
    }


def _question(limits: Limits) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "description": "One of target, text, image and sample is needed.",
        "oneOf": [{"required": [name]} for name in ("target", "text", "image", "sample")],
        "properties": {
            "target": {**_ID, "description": 'An id of the split, or "@N" for its row N.'},
            "split": {
                "type": "string",
                "description": "The targets' (the default) or the train split.",
            },
            "text": {"type": "string", "maxLength": limits.letters},
            "image": {"type": "string", "contentEncoding": "base64"},
            "sample": {"description": "Values as the job's data sets have them."},
            "label": {"description": "Class of a text or image; the prediction by default."},
            "k": {
                "type": "integer",
                "minimum": 1,
                "maximum": 1000,
                "description": "Entries of each list; 20 by default, or all train rows.",
            },
            "epochs": {"type": "array", "items": _ID},
            "method": {"type": "string", "enum": [*METHODS]},
            "samples": {"type": "boolean", "default": True},
            "stream": {"type": "boolean", "default": False},
            "tokens": {
                "oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 20}],
                "default": False,
                "description": "Entries of each list whose tokens have scores; true for three.",
            },
        },
    }


def _answer() -> dict[str, Any]:
    entries = {"type": "array", "items": _ref("Entry")}
    named = {"oneOf": [*_ID["oneOf"], {"type": "null"}]}
    return {
        "type": "object",
        "required": ["target", "proponents", "opponents", "method", "epochs"],
        "properties": {
            "target": named,
            "split": {"type": ["string", "null"]},
            "asked": {"type": "object"},
            "proponents": entries,
            "opponents": entries,
            "method": {"type": "string"},
            "epochs": {"type": "array", "items": _ID},
            "share": {"type": "number", "description": "Share of the train rows looked at."},
            "provenance": {"type": "object"},
        },
    }


def _entry() -> dict[str, Any]:
    number = {"type": "number"}
    return {
        "type": "object",
        "required": ["id", "score", "position"],
        "properties": {
            "id": _ID,
            "score": number,
            "position": {"type": "integer"},
            "label": {"type": "integer"},
            "by_epoch": {"type": "array", "items": number},
            "low": number,
            "high": number,
            "text": {"type": "string"},
            "image": {"type": "string", "description": "A data: URL."},
            "cells": {"type": "object"},
            "tokens": {
                "type": "array",
                "description": "Tokens whose scores add up to the entry's.",
                "items": {
                    "type": "object",
                    "properties": {
                        "tokens": {"type": "array", "items": {"type": "integer"}},
                        "text": {"type": "string"},
                        "score": number,
                    },
                },
            },
        },
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _reply(says: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": says, "content": {_JSON: {"schema": schema}}}


def _plain(says: str, kind: str) -> dict[str, Any]:
    return {
        "summary": says,
        "responses": {"200": {"description": says, "content": {kind: {"schema": {}}}}},
    }
