"""A small SSA emitter: Python values whose operators write LLVM IR text.

Values      +, -, *, &, |, ^, <<, >>, //, %, comparisons; numbers and scalars widen to vectors.
Pointers    p[i] loads, p[i] = v stores an element; p.vec(i, n) loads n lanes; p + i steps elements.
Registers   r = f.registers(type); r[key] = value; r[key] reads it: mutable names, promoted to SSA.
Control     with f.loop(start, stop, step) as i: ...; with f.when(condition): ...; unrolling is a
            plain Python for. Emission order is the schedule: LLVM will not reorder it for us.
No float contraction is allowed, so that a value's bits never depend on what surrounds it; a fused
multiply-add is written `a.fma(b, c)`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

from tidemill.codegen.types import BOOL, I8, I32, I64, PTR, Type, literal

Number = int | float


class Value:
    """An SSA value inside a function."""

    def __init__(self, f: Function, name: str, type_: Type) -> None:
        self.f, self.name, self.type = f, name, type_

    def __str__(self) -> str:
        return self.name

    @property
    def typed(self) -> str:
        return f"{self.type} {self.name}"

    def _binary(self, other: Value | Number, int_op: str, float_op: str) -> Value:
        a, b = self.f.unify(self, other)
        op = float_op if a.type.kind == "float" else int_op
        return self.f.op(f"{op} {a.type} {a}, {b}", a.type)

    def _compare(self, other: Value | Number, int_code: str, float_code: str) -> Value:
        a, b = self.f.unify(self, other)
        op = f"fcmp {float_code}" if a.type.kind == "float" else f"icmp {int_code}"
        return self.f.op(f"{op} {a.type} {a}, {b}", BOOL.x(a.type.lanes))

    def __add__(self, other: Value | Number) -> Value:
        return self._binary(other, "add", "fadd")

    def __sub__(self, other: Value | Number) -> Value:
        return self._binary(other, "sub", "fsub")

    def __mul__(self, other: Value | Number) -> Value:
        return self._binary(other, "mul", "fmul")

    def __truediv__(self, other: Value | Number) -> Value:
        return self._binary(other, "sdiv", "fdiv")

    def __floordiv__(self, other: Value | Number) -> Value:
        return self._binary(other, "udiv", "fdiv")

    def __mod__(self, other: Value | Number) -> Value:
        return self._binary(other, "urem", "frem")

    def __and__(self, other: Value | Number) -> Value:
        return self._binary(other, "and", "")

    def __or__(self, other: Value | Number) -> Value:
        return self._binary(other, "or", "")

    def __xor__(self, other: Value | Number) -> Value:
        return self._binary(other, "xor", "")

    def __lshift__(self, other: Value | Number) -> Value:
        return self._binary(other, "shl", "")

    def __rshift__(self, other: Value | Number) -> Value:
        return self._binary(other, "lshr", "")

    def shift_right_signed(self, bits: int) -> Value:
        return self._binary(bits, "ashr", "")

    def __lt__(self, other: Value | Number) -> Value:
        return self._compare(other, "slt", "olt")

    def __le__(self, other: Value | Number) -> Value:
        return self._compare(other, "sle", "ole")

    def __gt__(self, other: Value | Number) -> Value:
        return self._compare(other, "sgt", "ogt")

    def __ge__(self, other: Value | Number) -> Value:
        return self._compare(other, "sge", "oge")

    def eq(self, other: Value | Number) -> Value:
        return self._compare(other, "eq", "oeq")

    def ne(self, other: Value | Number) -> Value:
        return self._compare(other, "ne", "une")

    def to(self, type_: Type, signed: bool = True) -> Value:
        """Convert numerically, lane by lane."""
        target, source = type_.x(self.type.lanes), self.type
        if target == source:
            return self
        if source.kind == "float" and target.kind == "float":
            op = "fpext" if target.bits > source.bits else "fptrunc"
        elif source.kind == "float":
            op = "fptosi" if signed else "fptoui"
        elif target.kind == "float":
            op = "sitofp" if signed else "uitofp"
        elif target.kind == "ptr":
            op = "inttoptr"
        elif target.bits < source.bits:
            op = "trunc"
        else:
            op = "sext" if signed else "zext"
        return self.f.op(f"{op} {self.typed} to {target}", target)

    def bits_as(self, type_: Type) -> Value:
        """Reinterpret the bits."""
        if type_ == self.type:
            return self
        return self.f.op(f"bitcast {self.typed} to {type_}", type_)

    def as_pointer(self, element: Type) -> Pointer:
        return Pointer(self.f, self.to(PTR).name, element)

    def lane(self, index: int) -> Value:
        return self.f.op(f"extractelement {self.typed}, i32 {index}", self.type.scalar)

    def splat(self, lanes: int) -> Value:
        return self.f.splat(self, lanes)

    def shuffle(self, lanes: Sequence[int], other: Value | None = None) -> Value:
        """Pick lanes; those of `other`, a vector of the same type, are counted after our own."""
        mask = ", ".join(f"i32 {i}" for i in lanes)
        second = f"{self.type} poison" if other is None else other.typed
        text = f"shufflevector {self.typed}, {second}, <{len(lanes)} x i32> <{mask}>"
        return self.f.op(text, self.type.x(len(lanes)))

    def call(self, intrinsic: str, *extra: Value) -> Value:
        """Call the overloaded intrinsic llvm.<intrinsic> on this value."""
        return self.f.intrinsic(f"llvm.{intrinsic}.{self.type.mangled}", self.type, self, *extra)

    def fma(self, factor: Value | Number, addend: Value | Number) -> Value:
        return self.call("fma", self.f.unify(self, factor)[1], self.f.unify(self, addend)[1])

    def max(self, other: Value | Number) -> Value:
        """The larger of two, as one compare and select (llvm.maxnum adds NaN handling)."""
        a, b = self.f.unify(self, other)
        return self.f.select(a > b, a, b)

    def min(self, other: Value | Number) -> Value:
        a, b = self.f.unify(self, other)
        return self.f.select(a < b, a, b)

    def butterfly(self, combine: Callable[[Value, Value], Value]) -> Value:
        """Reduce over the lanes in a fixed tree; every lane of the result holds the value."""
        value, lanes = self, self.type.lanes
        width = lanes // 2
        while width:
            value = combine(value, value.shuffle([i ^ width for i in range(lanes)]))
            width //= 2
        return value

    def lanes_sum(self) -> Value:
        return self.butterfly(lambda a, b: a + b)

    def lanes_max(self) -> Value:
        return self.butterfly(lambda a, b: a.max(b))


class Pointer(Value):
    """An address of elements of one type."""

    def __init__(self, f: Function, name: str, element: Type) -> None:
        super().__init__(f, name, PTR)
        self.element = element

    def of(self, element: Type) -> Pointer:
        return Pointer(self.f, self.name, element)

    def at(self, index: Value | int) -> Pointer:
        """The address `index` elements further on."""
        if isinstance(index, int) and index == 0:
            return self
        i = self.f.constant(index, I64) if isinstance(index, int) else index
        address = self.f.op(f"getelementptr inbounds {self.element}, ptr {self}, {i.typed}", PTR)
        return Pointer(self.f, address.name, self.element)

    def bytes(self, count: Value | int) -> Pointer:
        """The address `count` bytes further on."""
        return self.of(I8).at(count).of(self.element)

    def to_address(self) -> Value:
        return self.f.op(f"ptrtoint {self.typed} to i64", I64)

    def vec(self, index: Value | int, lanes: int) -> Value:
        address, type_ = self.at(index), self.element.x(lanes)
        align = max(self.element.size_bytes, 1)
        return self.f.op(f"load {type_}, {address.typed}, align {align}", type_)

    def put(self, index: Value | int, value: Value) -> None:
        align = max(self.element.size_bytes, 1)
        self.f.line(f"store {value.typed}, {self.at(index).typed}, align {align}")

    def __getitem__(self, index: Value | int) -> Value:
        return self.vec(index, 1)

    def __setitem__(self, index: Value | int, value: Value | Number) -> None:
        stored = value if isinstance(value, Value) else self.f.constant(value, self.element)
        self.put(index, stored)

    def atomic_load(self, order: str = "acquire") -> Value:
        size = self.element.size_bytes
        return self.f.op(
            f"load atomic {self.element}, {self.typed} {order}, align {size}", self.element
        )

    def atomic_add(self, value: int, order: str = "acq_rel") -> Value:
        return self.f.op(
            f"atomicrmw add {self.typed}, {self.element} {value} {order}", self.element
        )

    def prefetch(self, offset_bytes: int, cache_level: int = 1, is_write: bool = False) -> None:
        address = self.of(I8).at(offset_bytes)
        write, keep, data = (self.f.constant(c, I32) for c in (is_write, 4 - cache_level, 1))
        self.f.intrinsic_void("llvm.prefetch.p0", address, write, keep, data)


class Registers:
    """Mutable registers by key: one stack slot each, promoted to SSA by LLVM."""

    def __init__(self, f: Function, type_: Type) -> None:
        self.f, self.type = f, type_
        self.slots: dict[Hashable, str] = {}

    def __getitem__(self, key: Hashable) -> Value:
        return self.f.op(f"load {self.type}, ptr {self.slots[key]}", self.type)

    def __setitem__(self, key: Hashable, value: Value | Number) -> None:
        if key not in self.slots:
            name = self.slots[key] = self.f.fresh()
            self.f.entry.append(f"  {name} = alloca {self.type}")
        stored = value if isinstance(value, Value) else self.f.constant(value, self.type)
        self.f.line(f"store {stored.typed}, ptr {self.slots[key]}")


class Function:
    """One function under construction; `args` become its parameters in order."""

    def __init__(
        self, name: str, args: dict[str, Type], exported: bool, declare: Callable[[str, str], None]
    ) -> None:
        self.name, self.declare = name, declare
        self.parameter_types = tuple(args.values())
        self.count = 0
        self.entry: list[str] = []
        self.body: list[str] = []
        self.block = "start"
        self.args = [Value(self, f"%arg.{arg}", type_) for arg, type_ in args.items()]
        parameters = ", ".join(value.typed for value in self.args)
        linkage = "" if exported else "internal "
        self.head = f"define {linkage}void @{name}({parameters}) noinline nounwind #0 {{"

    def fresh(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def line(self, text: str) -> None:
        self.body.append("  " + text)

    def op(self, text: str, type_: Type) -> Value:
        name = self.fresh()
        self.body.append(f"  {name} = {text}")
        return Value(self, name, type_)

    def constant(self, value: Number, type_: Type) -> Value:
        return Value(self, literal(value, type_), type_)

    def zero(self, type_: Type) -> Value:
        return Value(self, "zeroinitializer" if type_.lanes > 1 else literal(0, type_), type_)

    def table(self, values: Sequence[Number], type_: Type) -> Value:
        """A constant vector with a value for each lane."""
        lanes = ", ".join(f"{type_} {literal(v, type_)}" for v in values)
        return Value(self, f"<{lanes}>", type_.x(len(values)))

    def splat(self, value: Value, lanes: int) -> Value:
        type_ = value.type.x(lanes)
        return self.op(f"insertelement {type_} poison, {value.typed}, i32 0", type_).shuffle(
            [0] * lanes
        )

    def unify(self, a: Value, b: Value | Number) -> tuple[Value, Value]:
        """Bring two operands to a common shape: numbers become constants, scalars splats."""
        if not isinstance(b, Value):
            b = self.constant(b, a.type)
        if a.type.lanes < b.type.lanes:
            a = self.splat(a, b.type.lanes)
        if b.type.lanes < a.type.lanes:
            b = self.splat(b, a.type.lanes)
        return a, b

    def registers(self, type_: Type) -> Registers:
        return Registers(self, type_)

    def stack(self, type_: Type, count: int) -> Pointer:
        """A 64-byte aligned array on the stack."""
        name = self.fresh()
        self.entry.append(f"  {name} = alloca [{count} x {type_}], align 64")
        return Pointer(self, name, type_)

    def select(self, condition: Value, a: Value, b: Value | Number) -> Value:
        a, b = self.unify(a, b)
        return self.op(f"select {condition.typed}, {a.typed}, {b.typed}", a.type)

    def intrinsic(self, name: str, result: Type, *args: Value) -> Value:
        types = ", ".join(str(a.type) for a in args)
        self.declare(name, f"declare {result} @{name}({types})")
        return self.op(f"call {result} @{name}({', '.join(a.typed for a in args)})", result)

    def intrinsic_void(self, name: str, *args: Value) -> None:
        types = ", ".join(str(a.type) for a in args)
        self.declare(name, f"declare void @{name}({types})")
        self.line(f"call void @{name}({', '.join(a.typed for a in args)})")

    def memory_mark(self, *hidden: Pointer) -> None:
        """No access moves or merges across this: for stack arrays, once they were `hidden`."""
        inputs, args = "r," * len(hidden), ", ".join(pointer.typed for pointer in hidden)
        self.line(f'call void asm sideeffect "", "{inputs}~{{memory}}"({args})')

    def masked_store(self, value: Value, to: Pointer, mask: Value) -> None:
        """Store the lanes whose mask is set; the others' memory is not touched."""
        kind = value.type.mangled
        name = f"llvm.masked.store.{kind}.p0"
        self.declare(name, f"declare void @{name}({value.type}, ptr, i32, {mask.type})")
        align = value.type.scalar.size_bytes
        self.line(f"call void @{name}({value.typed}, {to.typed}, i32 {align}, {mask.typed})")

    def call(self, callee: Function, *args: Value | int) -> None:
        values = [
            a if isinstance(a, Value) else self.constant(a, type_)
            for a, type_ in zip(args, callee.parameter_types, strict=True)
        ]
        self.line(f"call void @{callee.name}({', '.join(v.typed for v in values)})")

    def label(self, name: str) -> None:
        self.body.append(f"{name}:")
        self.block = name

    @contextmanager
    def loop(self, start: Value | int, stop: Value | int, step: int = 1) -> Iterator[Value]:
        """Run the body for i in range(start, stop, step)."""
        self.count += 1
        n = self.count
        first = start if isinstance(start, Value) else self.constant(start, I64)
        last = stop if isinstance(stop, Value) else self.constant(stop, I64)
        i = Value(self, f"%i{n}", I64)
        self.line(f"br i1 {first < last}, label %loop{n}, label %done{n}")
        before = self.block
        self.label(f"loop{n}")
        phi_at = len(self.body)
        self.body.append("")
        yield i
        self.line(f"%next{n} = add nuw nsw i64 {i}, {step}")
        self.body[phi_at] = f"  {i} = phi i64 [{first}, %{before}], [%next{n}, %{self.block}]"
        more = self.op(f"icmp slt i64 %next{n}, {last}", BOOL)
        self.line(f"br i1 {more}, label %loop{n}, label %done{n}")
        self.label(f"done{n}")

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Run the body if the condition holds."""
        self.count += 1
        n = self.count
        self.line(f"br i1 {condition}, label %then{n}, label %end{n}")
        self.label(f"then{n}")
        yield
        self.line(f"br label %end{n}")
        self.label(f"end{n}")

    @contextmanager
    def repeat_until(self) -> Iterator[Callable[[Value], None]]:
        """Repeat the body until the condition handed to the yielded function is true."""
        self.count += 1
        n = self.count
        self.line(f"br label %again{n}")
        self.label(f"again{n}")
        conditions: list[Value] = []
        yield conditions.append
        self.line(f"br i1 {conditions[0]}, label %out{n}, label %again{n}")
        self.label(f"out{n}")

    def text(self) -> str:
        start = [self.head, "enter:", *self.entry, "  br label %start", "start:"]
        return "\n".join([*start, *self.body, "  ret void", "}"])
