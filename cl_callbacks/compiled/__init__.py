"""Operations that ``CompileRules`` fuses into single passes over memory.

Here live the tape of deferred operations and the kernels that are compiled from it. No equation belongs here,
and no other folder needs it to be understood: without compiling, each operation runs at once.
"""
