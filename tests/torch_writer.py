"""Files as `torch.save` writes them, written without torch."""

import collections
import dataclasses
import io
import pickle
import zipfile


class Storage:
    """An array as torch pickles it."""

    def __init__(self, key, array):
        self.pid = ("storage", Global("torch", "BFloat16Storage"), key, "cpu", array.size)


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that a pickle asks for."""

    module: str
    name: str


class TorchPickler(pickle._Pickler):
    """Writes what `torch.save` writes, without torch."""

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that a pickle asks for."""

    function: Global
    arguments: tuple


def torch_save(path, tensors, *, compression=zipfile.ZIP_STORED, more=None):
    """A file as `torch.save` of a state dict in bfloat16 makes it."""
    whole = collections.OrderedDict()
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key, (name, array) in enumerate(tensors.items()):
            strides = tuple(s // array.itemsize for s in array.strides)
            whole[name] = Call(
                Global("torch._utils", "_rebuild_tensor_v2"),
                (
                    Storage(str(key), array),
                    0,
                    array.shape,
                    strides,
                    False,
                    collections.OrderedDict(),
                ),
            )
            archive.writestr(f"weights/data/{key}", array.tobytes(order="A"))
        whole.update(more or {})
        buffer = io.BytesIO()
        TorchPickler(buffer, protocol=2).dump(dict(whole))
        archive.writestr("weights/data.pkl", buffer.getvalue())
        archive.writestr("weights/byteorder", b"little")
