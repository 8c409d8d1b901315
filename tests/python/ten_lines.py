import weldment

plan = weldment.plan("recipes/ties.yml")
print(len(plan.tensors), "tensors by", plan.method)
weldment.merge("recipes/ties.yml", "merged", force=True)
report = weldment.verify("merged", full=True)
assert report.passed, report
for row in weldment.diff("merged", "recipes/family/base").details.tensors[:3]:
    print(row.name)
print(weldment.check("merged").verdict)
