# Short words for what scripts/setup does: make demo, make test, make quick, make docs.
.PHONY: demo test quick docs

demo:
	scripts/setup demo

test:
	scripts/setup test

quick:
	scripts/setup test quick

# Pages that are written from the declarations of the stages and from the errors in the code.
docs:
	.venv/bin/python scripts/make_docs.py
