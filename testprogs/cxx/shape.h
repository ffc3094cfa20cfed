// The classes that main.cc and patch.cc share.
struct Shape {
    virtual ~Shape() = default;
    virtual int area() const = 0;
    virtual int version() const;
};
struct Square : Shape {
    int side;
    explicit Square(int s) : side(s) {}
    int area() const override;
};
