"""Operations that ``CompileRules`` fuses into single passes over memory.

Here live the tape of operations that wait and the kernels that they become. No equation belongs here, and
nothing of the other rooms needs it to be understood: without it each operation runs at once.
"""
