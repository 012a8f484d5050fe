import evaluation


def test_what_evaluation_exports():
    assert {
        "Scores",
        "cosine",
        "enrichment",
        "precision_at_r",
        "score",
        "score_figure",
        "similarity_figure",
    } <= set(evaluation.__all__)
    for name in evaluation.__all__:
        assert getattr(evaluation, name).__name__ == name
