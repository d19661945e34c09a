"""What a model writes, told apart while it writes: reasoning, content and tool calls.

Text in, pieces out (`pieces.Piece`), with no I/O: `machine.OutputParser` is a state machine whose
pieces, joined, depend on the text alone and never on how it was cut. A stage or a syntax of tool
calls is one file; `choose` picks them for a model.
"""
