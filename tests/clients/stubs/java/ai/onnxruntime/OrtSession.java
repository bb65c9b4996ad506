package ai.onnxruntime;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/** A graph, run by a process of Python's with ONNX Runtime, whose command is in the property 'sessions'. */
public class OrtSession implements AutoCloseable {
  private final Process process;
  private final DataOutputStream to;
  private final DataInputStream from;
  private final Set<String> inputs = new LinkedHashSet<>();

  OrtSession(String path) throws OrtException {
    String[] command = (System.getProperty("sessions") + "\n" + path).split("\n");
    try {
      process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
      to = new DataOutputStream(process.getOutputStream());
      from = new DataInputStream(process.getInputStream());
      for (int count = from.readInt(); count > 0; count--) {
        inputs.add(from.readUTF());
      }
    } catch (IOException error) {
      throw new OrtException(error.toString());
    }
  }

  public Set<String> getInputNames() {
    return inputs;
  }

  public Result run(Map<String, ? extends OnnxTensor> tensors) throws OrtException {
    if (!tensors.keySet().equals(inputs)) {
      throw new OrtException("inputs are " + inputs);
    }
    try {
      for (Map.Entry<String, ? extends OnnxTensor> entry : tensors.entrySet()) {
        write(entry.getKey(), entry.getValue().checked());
      }
      to.flush();
      Map<String, OnnxValue> found = new LinkedHashMap<>();
      for (int count = from.readInt(); count > 0; count--) {
        String name = from.readUTF();
        found.put(name, read());
      }
      return new Result(found);
    } catch (IOException error) {
      throw new OrtException(error.toString());
    }
  }

  private void write(String name, OnnxTensor tensor) throws IOException {
    to.writeUTF(name);
    to.writeUTF(tensor.type);
    to.writeInt(tensor.shape.length);
    for (long size : tensor.shape) {
      to.writeInt((int) size);
    }
    to.writeInt(tensor.bytes.length);
    to.write(tensor.bytes);
  }

  private OnnxTensor read() throws IOException {
    String type = from.readUTF();
    long[] shape = new long[from.readInt()];
    for (int i = 0; i < shape.length; i++) {
      shape[i] = from.readInt();
    }
    return new OnnxTensor(type, shape, from.readNBytes(from.readInt()));
  }

  @Override
  public void close() throws OrtException {
    try {
      to.close();
    } catch (IOException error) {
      throw new OrtException(error.toString());
    }
  }

  /** How a session is made. */
  public static class SessionOptions implements AutoCloseable {
    @Override
    public void close() {}
  }

  /** What a graph gives, by name. */
  public static class Result implements AutoCloseable, Iterable<Map.Entry<String, OnnxValue>> {
    private final Map<String, OnnxValue> found;

    Result(Map<String, OnnxValue> found) {
      this.found = found;
    }

    public Optional<OnnxValue> get(String name) {
      return Optional.ofNullable(found.get(name));
    }

    @Override
    public Iterator<Map.Entry<String, OnnxValue>> iterator() {
      return found.entrySet().iterator();
    }

    @Override
    public void close() {
      found.values().forEach(OnnxValue::close);
    }
  }
}
