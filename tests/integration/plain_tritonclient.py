"""A caller that knows nothing of this project: tritonclient, numpy and the wire contract.

Run as a script: gRPC URL, HTTP URL, model.
"""

import sys

import numpy as np
import tritonclient.grpc
import tritonclient.http

INPUTS = {"instruction": ("BYTES", [-1, 1]), "history": ("BYTES", [-1, -1]), "top_k": ("INT32", [-1, 1])}
OUTPUTS = {
    "item_id": ("BYTES", [-1, -1]),
    "title": ("BYTES", [-1, -1]),
    "label": ("BYTES", [-1, -1]),
    "score": ("FP32", [-1, -1]),
    "reason": ("FP32", [-1, -1, 4]),
    "release": ("BYTES", [-1, 1]),
}


def inputs(module, texts, histories, k):
    tensors = {
        "instruction": np.array([[text.encode()] for text in texts], dtype=np.object_),
        "history": np.array([[item.encode() for item in row] for row in histories], dtype=np.object_).reshape(
            len(texts), -1
        ),
        "top_k": np.full((len(texts), 1), k, dtype=np.int32),
    }
    made = []
    for name, (datatype, _) in INPUTS.items():
        tensor = module.InferInput(name, list(tensors[name].shape), datatype)
        tensor.set_data_from_numpy(tensors[name])
        made.append(tensor)
    return made


def check_metadata(metadata):
    for role, expected in (("inputs", INPUTS), ("outputs", OUTPUTS)):
        found = {one["name"]: (one["datatype"], [int(dim) for dim in one["shape"]]) for one in metadata[role]}
        assert found == expected, (role, found)


def check_answer(result, rows, k):
    for name in ("item_id", "title", "label", "score"):
        assert result.as_numpy(name).shape == (rows, k), (name, result.as_numpy(name).shape)
    score, reason = result.as_numpy("score"), result.as_numpy("reason")
    assert score.dtype == np.float32
    assert (np.diff(score, axis=1) <= 0).all()
    np.testing.assert_allclose(reason.sum(axis=-1), score, atol=1e-4)
    assert result.as_numpy("release").shape == (rows, 1)
    return result.as_numpy("item_id")


def main(grpc_url, http_url, model):
    texts, histories, k = (
        ["I want to buy a blue shirt", "a mug for tea"],
        [["sku-0001", "sku-0002"], ["sku-0003", ""]],
        7,
    )
    answers = []
    for module, url in ((tritonclient.grpc, grpc_url), (tritonclient.http, http_url)):
        with module.InferenceServerClient(url) as client:
            metadata = client.get_model_metadata(model, **({"as_json": True} if module is tritonclient.grpc else {}))
            check_metadata(metadata)
            answers.append(check_answer(client.infer(model, inputs(module, texts, histories, k)), len(texts), k))
            check_answer(client.infer(model, inputs(module, texts[:1], [[]], 100)), 1, 100)
    assert (answers[0] == answers[1]).all()
    project = {"instructrec_client", "serving", "training", "export", "loadtest", "torch"} & set(sys.modules)
    assert not project, project
    print("contract holds")


if __name__ == "__main__":
    main(*sys.argv[1:])
