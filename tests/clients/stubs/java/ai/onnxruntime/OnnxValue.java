package ai.onnxruntime;

/** What a graph gives. */
public interface OnnxValue extends AutoCloseable {
  @Override
  void close();
}
